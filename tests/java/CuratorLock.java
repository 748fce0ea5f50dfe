import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.retry.RetryOneTime;

/** Takes Curator's lock at a path of a server, says so, and holds it until its stdin ends. */
public class CuratorLock {
    public static void main(String[] arguments) throws Exception {
        CuratorFramework client = CuratorFrameworkFactory.newClient(arguments[0], 10000, 10000, new RetryOneTime(100));
        client.start();
        InterProcessMutex mutex = new InterProcessMutex(client, arguments[1]);
        mutex.acquire();
        System.out.println("held");
        while (System.in.read() >= 0) {
        }
        mutex.release();
        client.close();
        System.exit(0);
    }
}
